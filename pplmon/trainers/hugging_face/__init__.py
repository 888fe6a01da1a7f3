"""Connect pplmon to the Hugging Face ``Trainer`` and to what is built on it."""

from pplmon.trainers.hugging_face.callback import PerplexityCallback
from pplmon.trainers.hugging_face.watching import watch

__all__ = ["PerplexityCallback", "watch"]
