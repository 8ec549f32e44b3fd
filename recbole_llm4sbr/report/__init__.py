"""What grids and searches found, as Markdown and one HTML page. Reads their folders only: nothing is trained or loaded here."""
