"""What is asked for and what is stored: cells, protocols, registries, plans and the result store; free of torch."""
