"""One dataset of several in which different organs were drawn; what would poison it, and who decides."""
