"""One file per on-disk format; `FORMATS` in this package is the literal table of them."""
