"""What a model answered -> turns, or the reason why there are none."""
