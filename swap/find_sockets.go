package swap

func (a *assembly) addSockets(readings []*reading) {}
