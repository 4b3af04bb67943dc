from runs import fresh_accelerate

__all__ = ["fresh_accelerate"]
