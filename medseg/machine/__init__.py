"""This machine: cores, memory, processes, files that are written whole or not at all."""
