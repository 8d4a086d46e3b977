//! Tests of the integer instructions.
