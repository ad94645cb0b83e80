"""Where pairs of picture and caption come from, one module for each kind of input; `open.py` chooses among them."""
