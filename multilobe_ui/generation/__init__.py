"""From messages and weights over lobes to text, one chat at a time or many in a batch."""
