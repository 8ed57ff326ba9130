"""The ktap compiler: script text to bytecode."""
