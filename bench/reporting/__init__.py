"""Tables, statistics, figures and pages made of stored cells."""
