"""Wire pplmon into trainers. Nothing is computed here."""
