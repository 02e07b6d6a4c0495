"""What a node writes down about what happened: the audit chain and logs. Not: who may read it."""
