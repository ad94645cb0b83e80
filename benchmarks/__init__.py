"""Races against peers: both sides in one session, interleaved, medians and their ratio. `make bench` runs all."""
