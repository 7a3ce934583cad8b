"""Numbers as a reader wants them: percentages, times and significant digits, without a negative zero."""


def percent(fraction: float) -> str:
    return f"{100 * fraction + 0.0:.0f}%"


def points(fraction: float) -> str:
    """A signed difference in percentage points; zero has no sign."""
    rounded = round(100 * fraction)
    return f"{rounded:+d}" if rounded else "0"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def span(low: float, high: float, unit: str) -> str:
    """A range of two numbers with so many digits that its ends are not zero."""
    first, last = significant(low, 2), significant(high, 2)
    return f"{first} {unit}" if first == last else f"{first} to {last} {unit}"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent where that reads better."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    shown = f"{value:.{digits}g}"
    return shown if "e" not in shown else f"{value:.1e}"


def mrad(value: float) -> str:
    return f"{1000 * value + 0.0:.1f}"


def p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else significant(value, 2)
