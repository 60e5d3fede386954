// SPDX-License-Identifier: GPL-2.0

/*
 * Helpers for the HugeTLB abstractions: inline functions of hugetlbfs.
 */

#ifdef CONFIG_LIVEUPDATE_HUGETLB_KEEP

#include <linux/mm.h>

__rust_helper unsigned int rust_helper_pfn_nid(unsigned long pfn)
{
	return pfn_to_nid(pfn);
}

#endif /* CONFIG_LIVEUPDATE_HUGETLB_KEEP */

#ifdef CONFIG_LIVEUPDATE_HUGETLB

#include <linux/hugetlb.h>

__rust_helper unsigned int rust_helper_hugetlb_inode_order(struct inode *inode)
{
	return huge_page_order(hstate_inode(inode));
}

__rust_helper bool rust_helper_folio_has_poison(const struct folio *folio)
{
	return folio_test_hwpoison(folio);
}

#endif /* CONFIG_LIVEUPDATE_HUGETLB */
