"""What goes wrong while images are made or kept."""


class ImageError(Exception):
    """Something about an image failed; ``suggestion`` says what to do next."""

    def __init__(self, message: str, suggestion: str) -> None:
        super().__init__(message)
        self.suggestion = suggestion


class BuildError(ImageError):
    """An image could not be built."""


class ToolMissing(BuildError):
    """A program that a build needs is not installed."""

    def __init__(self, program: str, package: str) -> None:
        super().__init__(f"{program} is not installed", f"apt-get install {package}")
        self.program = program
        self.package = package


class StoreError(ImageError):
    """The image store cannot take or give a file."""


class BadImage(ImageError):
    """A file cannot be an image of its kind."""


class ImageTooLarge(ImageError):
    """An image would be larger than is allowed."""
