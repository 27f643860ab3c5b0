"""The agent of one host: carries out orders exactly once and says what it sees."""
