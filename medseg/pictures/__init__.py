"""Pictures and charts: slices with outlines, SVG charts, the page they stand on."""
