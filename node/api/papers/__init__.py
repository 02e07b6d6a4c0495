"""Papers that come through the API: checked, drafted, kept and audited."""
