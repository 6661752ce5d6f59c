"""Sessions: the protocol that front ends use, and the implementation that works in this process.

Importing this package costs little: engines and boundaries are imported when a session is opened.
"""

from hpcsh.session.protocol import Ask, Session

__all__ = ["Ask", "Session"]
