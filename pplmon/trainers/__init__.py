"""Connect pplmon to trainers. Nothing is computed here."""
