"""What a user is shown of a run: what it will cost, how far it is, one sample of it."""
