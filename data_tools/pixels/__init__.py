"""Pictures as they are found -> 8-bit sRGB, upright, opaque, of the wanted size; `prepare.py` is the way in."""
