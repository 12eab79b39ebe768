"""`editcl bench`: every figure of the README and the CHANGELOG is printed by a command here."""
