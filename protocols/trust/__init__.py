"""Who belongs: genesis, certificates, grants, invites, revocations, the hello. Not: what they may start."""
