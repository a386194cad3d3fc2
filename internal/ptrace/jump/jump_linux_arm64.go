package jump

// Registers are X0 to X30, SP and NZCV, one that is unused, and V0 to V31 in two
// halves each. X17 and the latter are not loaded.
type Registers [98]uint64
