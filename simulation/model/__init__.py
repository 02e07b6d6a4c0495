"""The formal model of the decision chain (DecisionChain.tla) and the runs that check it. Not: a simulator."""
