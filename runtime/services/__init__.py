"""The embedded providers of guest services. Not here: the provider interface (`runtime/providers.py`)."""
