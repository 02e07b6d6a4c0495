"""Commands on who acts: keys, logins, tokens, agents and runners."""
