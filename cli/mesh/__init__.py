"""The client's side of a mesh: keys and contexts in the user's home, the API's client, and how a deploy is put together."""
