"""How the tiny SAM of the demo and the tests was made; a tool of this project, which no other room imports."""
