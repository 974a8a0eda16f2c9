package consume

var NewIterator = newIterator
