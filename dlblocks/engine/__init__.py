"""Many models of one architecture in one fit."""
