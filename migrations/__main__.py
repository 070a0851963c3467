"""`python -m migrations` brings the database to the newest schema."""

from core.settings import Settings
from migrations import upgrade

if __name__ == "__main__":
    upgrade(Settings())
