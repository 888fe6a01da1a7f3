"""Plain numbers, without torch: the integers, the formulas, and the reports that rules and sinks read."""
