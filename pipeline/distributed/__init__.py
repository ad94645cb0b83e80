"""Processes, engines and the averages of their weights: the only floor that knows how training is spread over ranks."""
