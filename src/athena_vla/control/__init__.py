"""What must never fail: chunks become joint commands within every limit. numpy only; this is what a robot installs."""
