"""Why no dataset was frozen. The message is for people: what, where, and what to do."""


class FreezeError(Exception):
    """No dataset was made, and nothing was left behind."""


class NothingToFreeze(FreezeError):
    """The labels are there to be read, but nothing in them can teach a model anything."""


class InvalidFreeze(FreezeError):
    """What was asked for cannot be done: an open round, a name that is taken, a foreign round."""


class FreezeFailed(FreezeError):
    """It should have worked: a full disk, labels that changed meanwhile."""
