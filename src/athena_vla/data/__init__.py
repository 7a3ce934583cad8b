"""Stage 1: recordings become samples. numpy only, physical units, no torch."""
