"""What people read: output, tables, times, units. Not: what is said."""
