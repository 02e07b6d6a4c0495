"""Trusted issuers of identity: a CI job's token becomes a grant that ends with the job."""
