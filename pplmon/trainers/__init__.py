"""Wire pplmon into trainers. No arithmetic."""
