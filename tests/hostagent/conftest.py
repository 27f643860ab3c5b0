"""Tests of the agent say nothing about what they provoke on purpose."""

import logging

import structlog

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
