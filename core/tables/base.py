"""The base class of all tables, and the type of their JSON columns."""

from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Base of all tables: text without a length limit, times with a time zone, JSON as JSONB, None as SQL NULL."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's)
        str: Text,
        datetime: DateTime(timezone=True),
        Json: JSONB(none_as_null=True),
    }
