"""The daemon's own upgrade: releases beside the installed one, a trial that goes back by itself, one node at a time."""
