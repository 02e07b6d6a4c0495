"""A change from the client's side: propose, review, evidence, start. Not: the words on the terminal."""
