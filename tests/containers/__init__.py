"""Tests of docker-compose.yml on a Docker engine with a tiny model. Not in the test suite: building takes minutes."""
