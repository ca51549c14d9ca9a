"""The preference app: people say which of two answers is better."""
