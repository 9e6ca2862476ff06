"""Structures that are uploaded once and then named by their id."""
