"""Fakes, contract suites and stack fixtures for the tests of every service; never imported by production code."""
