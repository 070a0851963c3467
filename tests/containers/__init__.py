"""docker-compose.yml on a Docker engine, with a tiny model. No part of the test suite: it builds images for minutes."""
